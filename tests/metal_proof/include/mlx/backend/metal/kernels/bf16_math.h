// Stands in for MLX's header of this name: msl/math.h has the bfloat functions already.
#pragma once
