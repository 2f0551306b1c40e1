"""Options of commands for small models, which train in no time."""

SMALL = (
    "--preset cpu --width 8 --word-width 6 --batch-size 10 --epochs 2 --decay-epochs 1 --ramp-steps 2 --validation-images 5".split()
)
