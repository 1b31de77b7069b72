"""The composefs repository: objects, streams, images, references; pulled OCI images become trees here."""
