"""The ground floor: the door to the native kernels, and what a device can do."""
