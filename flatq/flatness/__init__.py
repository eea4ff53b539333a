"""How flat the loss is around a trained network's weights, and what that means for quantization.

Everything is measured on fixed draws of (x0, t, noise) that all models share, in evaluation mode, on the mean
squared error of the network's output. Nothing is trained or written to a network.

    settings.py   FlatnessSettings: what is measured
    draws.py      the fixed draws of images, timesteps and noise
    landscape.py  the loss, its gradient and its Hessian at the weights plus a perturbation
    measure.py    weight noise, SAM's ascent, curvature and weight statistics of one checkpoint
    damage.py     loss increase under an artifact's own quantization error, and its forecasts
    exposure.py   norm of the predicted noise in training against sampling
    theory.py     the two theorems in the linear-gaussian case (docs/theory.md)
    result.py     what the measurements are, as JSON
    report.py     Markdown and plots
"""
