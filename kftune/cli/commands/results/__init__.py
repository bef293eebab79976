"""Commands about results: read, drawn, served, taken out, brought in."""
