from keras_griffin.kernels.linear_scan.api import linear_scan as linear_scan
