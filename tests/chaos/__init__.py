"""What can go wrong around a study, tried: kills, bad disks, bad code, bad files."""
