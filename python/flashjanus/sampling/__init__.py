"""How images are drawn and tokens are chosen: options, presets, solvers, schedules and noise."""
