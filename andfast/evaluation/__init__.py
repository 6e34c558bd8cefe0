"""What models make of benchmarks: found, measured image by image, kept, and reported."""
