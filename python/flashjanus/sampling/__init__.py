"""How an image is drawn and a token chosen: options, presets, solvers, schedules and noise."""
