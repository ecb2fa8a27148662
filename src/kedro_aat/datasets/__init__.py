"""What the catalog persists: models, controllers, checkpoint stores and exported files."""
