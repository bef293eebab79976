"""One run under a budget: the loop, its clock, schedules, memory and speed of the machine."""
