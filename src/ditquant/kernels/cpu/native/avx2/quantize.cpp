#include "../quantize.cpp"
