"""A model as others receive it: its card, and its way to and from a Hugging Face repository."""
