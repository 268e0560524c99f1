"""RA3's stages as plug-ins: `mid_training` infers latents and trains on them, `rlvr` improves on tests' verdicts.

`sb3` and `tianshou` hold the adapters to these libraries.
"""
