// Stands in for MLX's header of this name: kernels cannot log here.
#pragma once
