"""How each part is trained from nothing on the toy world: merges, CLIP, VAE, UNet, and the judge."""
