// CUDA's short vectors: plain structs with members x, y, z, w, aligned as on the device, and make_ functions.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_VECTOR_TYPES_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_VECTOR_TYPES_H_

#define QST_CUDA_SHIM_VECTORS(name, scalar, align2, align4)                         \
  struct name##1 {                                                                  \
    scalar x;                                                                       \
  };                                                                                \
  struct alignas(align2) name##2 {                                                  \
    scalar x, y;                                                                    \
  };                                                                                \
  struct name##3 {                                                                  \
    scalar x, y, z;                                                                 \
  };                                                                                \
  struct alignas(align4) name##4 {                                                  \
    scalar x, y, z, w;                                                              \
  };                                                                                \
  inline name##1 make_##name##1(scalar x) { return {x}; }                           \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

QST_CUDA_SHIM_VECTORS(char, signed char, 2, 4)
QST_CUDA_SHIM_VECTORS(uchar, unsigned char, 2, 4)
QST_CUDA_SHIM_VECTORS(short, short, 4, 8)
QST_CUDA_SHIM_VECTORS(ushort, unsigned short, 4, 8)
QST_CUDA_SHIM_VECTORS(int, int, 8, 16)
QST_CUDA_SHIM_VECTORS(uint, unsigned int, 8, 16)
QST_CUDA_SHIM_VECTORS(longlong, long long, 16, 16)
QST_CUDA_SHIM_VECTORS(ulonglong, unsigned long long, 16, 16)
QST_CUDA_SHIM_VECTORS(float, float, 8, 16)
QST_CUDA_SHIM_VECTORS(double, double, 16, 16)
#undef QST_CUDA_SHIM_VECTORS

struct dim3 {
  constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1) : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  operator uint3() const { return {x, y, z}; }
  unsigned int x, y, z;
};

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_VECTOR_TYPES_H_
