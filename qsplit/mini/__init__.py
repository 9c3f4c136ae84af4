"""How the bundled checkpoint is made and measured: its data, its network, its training, its model card."""
