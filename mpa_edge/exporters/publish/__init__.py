"""What stands beside the weights: layout, manifest, model card, licences, and the upload to the hub."""
