"""The proof of `refvit check`: implementations that are right, and the same broken in one known place by one known mistake.

    subjects, trained       the models, small and of random weights with the statistics of trained ones
    torch_models, torch_*   right implementations: timm, transformers, and own modules written from the papers' facts
    onnx_models, files      the same as ONNX files and as dumps
    sites                   where in a torch module each value of the reference is computed and shown
    bug                     what a mistake is, and what has to be found
    effects                 whether it can be seen, in the candidate's own arithmetic
    activations ... inputs  the mistakes
    jpeg                    another decoder of images
    others                  mistakes that no table of conventions has
    cases, verdicts         a mistake drawn; what is said of it, and whether that is right
    right                   runs that must raise no alarm: every way with every model
    answers                 which of the causes that `refvit check` names are right for which mistake
    tables                  the figures, and every miss

Nothing here is imported from `refvit.crosscheck`, and nothing there from here.
"""
