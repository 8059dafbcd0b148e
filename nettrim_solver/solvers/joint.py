def solve_joint(run): raise NotImplementedError
