"""Files, journals, command lines, progress, signals, endpoints: nothing that knows of models or methods."""
