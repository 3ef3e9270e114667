"""What the notebooks, the recorded runs and the command line share; the core never imports it."""
