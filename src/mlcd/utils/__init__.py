"""What every room uses and no field knows: errors, files, logging, processes, fingerprints."""
