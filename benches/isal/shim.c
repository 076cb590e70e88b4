// The three calls of ISA-L that the benchmark needs, checked by the compiler against ISA-L's own header.

#include <isa-l.h>

// Tables for rows × k coefficients, row by row: 32 · k · rows bytes.
void cairn_isal_tables(int k, int rows, unsigned char *coefficients, unsigned char *tables)
{
    ec_init_tables(k, rows, coefficients, tables);
}

// out[rows] = coefficients · data[k], with the best code for this processor.
void cairn_isal_multiply(int len, int k, int rows, unsigned char *tables, unsigned char **data, unsigned char **out)
{
    ec_encode_data(len, k, rows, tables, data, out);
}

// The inverse of a k × k matrix, which is overwritten. 0 if there is one.
int cairn_isal_invert(unsigned char *matrix, unsigned char *inverse, int k)
{
    return gf_invert_matrix(matrix, inverse, k);
}
