#include "../linear_groups.cpp"
