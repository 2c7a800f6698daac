from .loop import train
