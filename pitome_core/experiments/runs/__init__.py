"""What experiments compare and how they run it: grid, sweep, training stages, clock and command line."""
