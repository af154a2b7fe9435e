"""From files to files: what is asked for, many compositions at once, and the records that tell what was made."""
