"""This package goes from files to files: it reads what a user asks for, makes many compositions, and records them."""
