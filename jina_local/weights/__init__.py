"""The tensors of one model: its shape, their names, its adapters. It knows no place."""
