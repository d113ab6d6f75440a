"""The shipped recipes, one TOML file each; `multirobust list recipes` names them."""
