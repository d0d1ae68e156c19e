"""Model folders: validating, loading, generating."""
