"""The feature store: LanceDB tables of features, images, files and what was found out about them."""
