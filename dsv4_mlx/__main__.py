"""python -m dsv4_mlx"""

from dsv4_mlx.cli import main

if __name__ == "__main__":
    main()
