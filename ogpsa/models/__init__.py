"""Model folders: validating, loading, chat templates, generating."""
