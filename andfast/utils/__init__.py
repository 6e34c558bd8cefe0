"""What the other folders share: files, locks, devices, memory, random numbers, the terminal."""
