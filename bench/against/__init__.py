"""Parts of the comparison with mlx-vlm."""
