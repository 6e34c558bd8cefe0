"""Upscaling images with a trained model: what `andfast.upscale`, the call and the command, is made of."""
