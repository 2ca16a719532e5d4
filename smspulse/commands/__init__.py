"""The commands, by theme. `smspulse.cli` registers them; heavy imports happen inside them."""
