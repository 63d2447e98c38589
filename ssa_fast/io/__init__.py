"""Read and write files: images, datasets, CAM files, large-image readers and writers."""
