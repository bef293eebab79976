"""Who is best, how sure, and how far it carries: verdicts, times to a target, transfer, what to export."""
