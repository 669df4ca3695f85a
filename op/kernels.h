// The arithmetic of the CUDA kernels: what one thread computes. Free of launches, so that a C++ compiler can compile it
// too, and a test can run it on a machine without a GPU. op/leaky_relu.py and op/upfirdn.py define the two operations.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SHARED_CODE __host__ __device__ __forceinline__

// Sums are kept in float32, of doubles in double.
template <class T> struct Sum { using type = float; };
template <> struct Sum<double> { using type = double; };

SHARED_CODE float widen(float v) { return v; }
SHARED_CODE double widen(double v) { return v; }
SHARED_CODE float widen(__half v) { return __half2float(v); }
SHARED_CODE float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
SHARED_CODE void narrow(float v, float &to) { to = v; }
SHARED_CODE void narrow(double v, double &to) { to = v; }
SHARED_CODE void narrow(float v, __half &to) { to = __float2half_rn(v); }
SHARED_CODE void narrow(float v, __nv_bfloat16 &to) { to = __float2bfloat16_rn(v); }

// ---------------------------------------------------------------------------------------------------- leaky_relu

struct LeakyRelu {
    const void *x, *bias, *sign;  // bias (channels) and sign (like x) may be null
    void *out;                    // like x; may be x itself
    int64_t inner, channels;      // memory holds `inner` values of one channel, then as many of the next
    double positive, negative;    // the gain on either side of zero
};

template <class T, int N> struct alignas(sizeof(T) * N) Vector { T at[N]; };

// Vectors of N take N values of one channel, or of N neighboring channels: see vector_length.
template <class T, int N> SHARED_CODE void leaky_relu_vector(const LeakyRelu &op, int64_t i) {
    using Number = typename Sum<T>::type;
    using Values = Vector<T, N>;
    Values v = static_cast<const Values *>(op.x)[i], sign, out;
    if (op.sign) sign = static_cast<const Values *>(op.sign)[i];
    const T *bias = static_cast<const T *>(op.bias);
    if (bias) bias += i * N / op.inner % op.channels;
    int step = op.inner == 1;
#pragma unroll
    for (int j = 0; j < N; j++) {
        Number value = widen(v.at[j]);
        if (bias) value += widen(bias[j * step]);
        bool positive = op.sign ? widen(sign.at[j]) > 0 : value > 0;
        narrow(value * Number(positive ? op.positive : op.negative), out.at[j]);
    }
    static_cast<Values *>(op.out)[i] = out;
}

// The most values that one thread may take: 16 bytes, where addresses, count and runs of a channel allow it, else 1.
template <class T> inline int vector_length(const LeakyRelu &op, int64_t count) {
    const int most = 16 / sizeof(T);
    auto address = reinterpret_cast<uintptr_t>(op.x) | reinterpret_cast<uintptr_t>(op.out) |
                   reinterpret_cast<uintptr_t>(op.sign);
    bool runs = !op.bias || (op.inner == 1 ? op.channels : op.inner) % most == 0;
    return address % 16 == 0 && count % most == 0 && runs ? most : 1;
}

// ----------------------------------------------------------------------------------------------------- upfirdn2d

struct Filter {
    const void *x, *taps;  // x (major, in_height, in_width, minor); taps (kh, kw) of the sums' type
    void *out;             // (major, out_height, out_width, minor)
    int64_t major, minor;
    int in_height, in_width, out_height, out_width, kh, kw, up, down, left, top;
    bool flip;  // correlate instead of convolving
};

template <class Number> SHARED_CODE Number tap(const Filter &op, int y, int x) {
    int at = y * op.kw + x;
    return static_cast<const Number *>(op.taps)[op.flip ? at : op.kh * op.kw - 1 - at];
}

// One output, any filter: row oy, column q / minor, channel q % minor of image m. Of the taps only those meet a pixel
// that do not fall on the zeros between: every up-th, from the first on.
template <class T> SHARED_CODE void filter_point(const Filter &op, int64_t m, int oy, int64_t q) {
    using Number = typename Sum<T>::type;
    int ox = int(q / op.minor), uy = oy * op.down - op.top, ux = ox * op.down - op.left;
    int first_y = ((-uy) % op.up + op.up) % op.up, first_x = ((-ux) % op.up + op.up) % op.up;
    const T *image = static_cast<const T *>(op.x) + m * op.in_height * op.in_width * op.minor + q % op.minor;
    Number sum = 0;
    for (int ty = first_y; ty < op.kh; ty += op.up) {
        int iy = (uy + ty) / op.up;
        if (iy < 0 || iy >= op.in_height) continue;
        for (int tx = first_x; tx < op.kw; tx += op.up) {
            int ix = (ux + tx) / op.up;
            if (ix < 0 || ix >= op.in_width) continue;
            sum += tap<Number>(op, ty, tx) * Number(widen(image[(int64_t(iy) * op.in_width + ix) * op.minor]));
        }
    }
    narrow(sum, static_cast<T *>(op.out)[(m * op.out_height + oy) * op.out_width * op.minor + q]);
}

// ROWS outputs below one another from row oy on, of a K x K filter without resampling: every pixel is read once for all
// the outputs that it touches.
template <class T, int K, int ROWS> SHARED_CODE void blur_strip(const Filter &op, int64_t m, int oy, int64_t q) {
    using Number = typename Sum<T>::type;
    Number taps[K][K], sums[ROWS] = {};
#pragma unroll
    for (int y = 0; y < K; y++)
#pragma unroll
        for (int x = 0; x < K; x++) taps[y][x] = tap<Number>(op, y, x);
    int ix = int(q / op.minor) - op.left;
    const T *column = static_cast<const T *>(op.x) + m * op.in_height * op.in_width * op.minor +
                      int64_t(ix) * op.minor + q % op.minor;
#pragma unroll
    for (int r = 0; r < ROWS + K - 1; r++) {
        int iy = oy - op.top + r;
        if (iy < 0 || iy >= op.in_height) continue;
#pragma unroll
        for (int x = 0; x < K; x++) {
            if (ix + x < 0 || ix + x >= op.in_width) continue;
            Number value = widen(column[(int64_t(iy) * op.in_width + x) * op.minor]);
#pragma unroll
            for (int y = 0; y < K; y++)
                if (r - y >= 0 && r - y < ROWS) sums[r - y] += taps[y][x] * value;
        }
    }
    T *out = static_cast<T *>(op.out) + (m * op.out_height + oy) * op.out_width * op.minor + q;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (oy + r < op.out_height) narrow(sums[r], out[int64_t(r) * op.out_width * op.minor]);
}
