"""How a verb becomes a torch operator, and all of them; `sparseggm.torch.ops` has their public names."""
