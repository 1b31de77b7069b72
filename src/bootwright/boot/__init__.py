"""Boot loaders, boot entries and kernel arguments."""
