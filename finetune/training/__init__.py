"""One module a kind of training, over what they share: the recipe, the folder a training is kept in, and TRL's trainers by length."""
