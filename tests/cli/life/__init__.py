"""What happens to stored studies: gone on with, changed, renamed, deleted."""
