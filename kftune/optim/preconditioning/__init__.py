"""What K-FAC's family shares: schedules, damping, clip, adaptation, coarse space, tridiagonal algebra, eigenbases."""
