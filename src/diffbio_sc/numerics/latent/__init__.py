"""Latent variables of several modalities: fusion of experts, joint factors."""
