"""Deployments on disk: state directories, origins, the /etc merge, finalisation."""
