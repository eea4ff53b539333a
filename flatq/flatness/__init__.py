"""How flat the loss is around a trained network's weights, and what that says of quantization.

Everything is measured on fixed draws of (x0, t, noise) that all models share, in evaluation mode, on the mean
squared error of the network's output. Nothing is trained or written to a network.

    settings.py   FlatnessSettings: what is measured
    draws.py      the fixed draws of images, timesteps and noise
    landscape.py  the loss, its gradient and its Hessian at the weights plus a perturbation
    lpf.py        mean loss under gaussian weight noise, absolute and relative to each filter
    sharpness.py  loss at SAM's ascent point
    curvature.py  largest eigenvalue and trace of the Hessian
    weights.py    norm, range and kurtosis of each weight tensor
    exposure.py   norm of the predicted noise in training against sampling
    damage.py     loss increase under an artifact's own quantization error, and its forecasts
    theory.py     the two theorems in the linear-gaussian case (docs/theory.md)
    result.py     what the measurements are, as JSON
    measure.py    all of them on one checkpoint
    report.py     Markdown and plots
"""
