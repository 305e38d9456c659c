"""python -m dsv4_mlx"""

from dsv4_mlx.cli.main import main

if __name__ == "__main__":
    main()
