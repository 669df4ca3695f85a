// The CUDA kernels of op/ behind a C interface: each function takes a dtype, device pointers, sizes and a stream, and
// returns a cudaError_t. kernels.py builds and calls them; kernels.h holds what one thread does.
#include <algorithm>

#include "kernels.h"

namespace {

const int THREADS = 256;
const int BLUR = 4;       // StyleGAN2's [1,3,3,1] filters are 4 x 4
const int BLUR_ROWS = 8;  // outputs that a thread of the blur computes

template <class T, int N> __global__ void leaky_relu_kernel(LeakyRelu op, int64_t vectors) {
    int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += stride)
        leaky_relu_vector<T, N>(op, i);
}

template <class T, int N> void start(const LeakyRelu &op, int64_t count, cudaStream_t stream) {
    int64_t blocks = (count / N + THREADS - 1) / THREADS;
    leaky_relu_kernel<T, N><<<unsigned(std::min<int64_t>(blocks, 1 << 30)), THREADS, 0, stream>>>(op, count / N);
}

template <class T> void start_leaky_relu(const LeakyRelu &op, int64_t count, cudaStream_t stream) {
    if (vector_length<T>(op, count) == 1)
        start<T, 1>(op, count, stream);
    else
        start<T, 16 / sizeof(T)>(op, count, stream);
}

// Threads: x runs over columns and channels, y over rows or strips of rows, z over images.
template <class T, bool STRIPS> __global__ void filter_kernel(Filter op) {
    const int rows = STRIPS ? BLUR_ROWS : 1;
    int64_t q = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (q >= op.out_width * op.minor) return;
    for (int64_t m = blockIdx.z; m < op.major; m += gridDim.z)
        for (int64_t strip = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; strip * rows < op.out_height;
             strip += int64_t(gridDim.y) * blockDim.y) {
            if (STRIPS)
                blur_strip<T, BLUR, BLUR_ROWS>(op, m, int(strip * rows), q);
            else
                filter_point<T>(op, m, int(strip), q);
        }
}

template <class T> void start_upfirdn2d(const Filter &op, int64_t, cudaStream_t stream) {
    bool strips = op.up == 1 && op.down == 1 && op.kh == BLUR && op.kw == BLUR;
    int64_t rows = (op.out_height + (strips ? BLUR_ROWS : 1) - 1) / (strips ? BLUR_ROWS : 1);
    dim3 threads(32, THREADS / 32);  // a square of the blur's outputs, 32 x 64, shares what it reads through the L1 cache
    dim3 grid(unsigned((op.out_width * op.minor + threads.x - 1) / threads.x),
              unsigned(std::min<int64_t>((rows + threads.y - 1) / threads.y, 65535)),
              unsigned(std::min<int64_t>(op.major, 65535)));
    if (strips)
        filter_kernel<T, true><<<grid, threads, 0, stream>>>(op);
    else
        filter_kernel<T, false><<<grid, threads, 0, stream>>>(op);
}

enum Dtype { FLOAT, DOUBLE, HALF, BFLOAT16 };  // DTYPES in kernels.py

#define START(FUNCTION, DTYPE, OP, COUNT, STREAM)                                                       \
    do {                                                                                                \
        if ((COUNT) == 0) return cudaSuccess;                                                           \
        cudaStream_t stream_ = static_cast<cudaStream_t>(STREAM);                                       \
        switch (DTYPE) {                                                                                \
            case FLOAT: FUNCTION<float>(OP, COUNT, stream_); break;                                     \
            case DOUBLE: FUNCTION<double>(OP, COUNT, stream_); break;                                   \
            case HALF: FUNCTION<__half>(OP, COUNT, stream_); break;                                     \
            case BFLOAT16: FUNCTION<__nv_bfloat16>(OP, COUNT, stream_); break;                          \
            default: return cudaErrorInvalidValue;                                                      \
        }                                                                                               \
        return cudaGetLastError();                                                                      \
    } while (0)

}  // namespace

extern "C" int stylesdf_leaky_relu(int dtype, void *out, const void *x, const void *bias, const void *sign,
                                   int64_t count, int64_t inner, int64_t channels, double negative_slope,
                                   double scale, void *stream) {
    LeakyRelu op = {x, bias, sign, out, inner, channels, scale, negative_slope * scale};
    START(start_leaky_relu, dtype, op, count, stream);
}

extern "C" int stylesdf_upfirdn2d(int dtype, void *out, const void *x, const void *taps, int64_t major,
                                  int64_t minor, int in_height, int in_width, int out_height, int out_width, int kh,
                                  int kw, int up, int down, int left, int top, int flip, void *stream) {
    Filter op = {x, taps, out, major, minor, in_height, in_width, out_height, out_width, kh, kw, up, down, left, top,
                 flip != 0};
    START(start_upfirdn2d, dtype, op, major * minor * out_height * out_width, stream);
}

extern "C" const char *stylesdf_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
