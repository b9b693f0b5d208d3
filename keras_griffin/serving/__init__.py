"""Many users on one model, each as if alone: the engine, its HTTP server."""

from keras_griffin.serving.engine import Engine as Engine
from keras_griffin.serving.request import Completion as Completion
from keras_griffin.serving.request import Piece as Piece
from keras_griffin.serving.request import QueueFull as QueueFull
from keras_griffin.serving.request import Request as Request
